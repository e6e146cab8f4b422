-- depends: 0008_create_progress_views
--
-- Keys of records, as text.
set local lock_timeout = '5s';

create function pgembed.find_pipeline(name text)
returns pgembed.pipelines
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    pipeline pgembed.pipelines;
    names text;
begin
    select * into pipeline from pgembed.pipelines where pipelines.name = find_pipeline.name;
    if not found then
        select string_agg(pipelines.name, ', ' order by id) into names from pgembed.pipelines;
        raise exception 'there is no pipeline %', quote_nullable(name)
            using
                errcode = 'undefined_object',
                hint = 'there is ' || coalesce(names, 'none yet; make one: pgembed create');
    end if;
    return pipeline;
end
$function$;

comment on function pgembed.find_pipeline is
    'The row of a pipeline; an error that names those there are, if it is none of them. For the other functions.';

create function pgembed.base_type(type regtype)
returns regtype
language sql
stable
set search_path = pg_catalog, pg_temp
as $function$
    with recursive unwrapped (type, beneath) as (
        select pg_type.oid, typbasetype from pg_type where pg_type.oid = base_type.type
        union all
        select pg_type.oid, typbasetype
        from unwrapped
        join pg_type on pg_type.oid = unwrapped.beneath
    )
    select unwrapped.type::regtype from unwrapped where beneath = 0;
$function$;

comment on function pgembed.base_type is
    'The type beneath a domain, or beneath a domain over domains; of any other type, itself. For the other functions.';

-- The text of a key is its identity: written as the program writes it (key.py), however it was
-- given. Times depend on DateStyle and TimeZone, which canonical_keys pins.
create function pgembed.key_text(parts text[], types text[])
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
as $function$
declare
    part json;
    written text[] := '{}';
begin
    if cardinality(parts) <> cardinality(types) then
        raise invalid_parameter_value using message = format('it has %s parts', cardinality(parts));
    end if;
    -- Which JSON would write with a T.
    if types = array['timestamp with time zone'] then
        return parts[1]::timestamptz::text;
    end if;
    for position in 1 .. cardinality(types) loop
        part := case types[position]
            when 'smallint' then to_json(parts[position]::smallint)
            when 'integer' then to_json(parts[position]::integer)
            when 'bigint' then to_json(parts[position]::bigint)
            when 'uuid' then to_json(parts[position]::uuid)
            when 'date' then to_json(parts[position]::date)
            when 'timestamp with time zone' then to_json(parts[position]::timestamptz)
            when 'text' then to_json(parts[position])
        end;
        if part is null then
            raise invalid_parameter_value using message = 'no part of a key is null';
        end if;
        written := written || part::text;
    end loop;
    return case
        when cardinality(types) = 1 then part #>> '{}'
        else '[' || array_to_string(written, ', ') || ']'
    end;
end
$function$;

comment on function pgembed.key_text is
    'The text of a key in queue and ledger, from the values of its columns and their types. For the other functions.';

create function pgembed.canonical_keys(keys text[], pipeline pgembed.pipelines)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set row_security = off
set datestyle = 'ISO, YMD'
set timezone = 'UTC'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set lc_monetary = 'C'
set bytea_output = 'hex'
set xmlbinary = 'base64'
as $function$
declare
    types constant text[] := array(
        select type from jsonb_to_recordset(pipeline.key_columns) as listed (type text)
    );
    -- What a unique index of the source takes: a page holds three of its rows. JSON may write a
    -- character of one byte as six.
    most_bytes constant integer := case when cardinality(types) = 1 then 2684 else 6 * 2684 end;
    key text;
    parts text[];
    written text;
    canonical text[] := '{}';
begin
    if keys is null then
        raise null_value_not_allowed using
            message = 'there are no keys, but null',
            hint = 'give an array, such as array[4711, 4712]';
    end if;
    begin
        foreach key in array keys loop
            parts := case
                when cardinality(types) = 1 then array[key]
                else array(select jsonb_array_elements_text(key::jsonb))
            end;
            written := pgembed.key_text(parts, types);
            if octet_length(written) > most_bytes then
                raise invalid_parameter_value using message =
                    format('it has %s bytes, and a key %s at most', octet_length(written), most_bytes);
            end if;
            canonical := canonical || written;
        end loop;
    exception
        when data_exception then
            raise exception '% cannot be a key of pipeline %: %',
                left(quote_nullable(key), 100), quote_literal(pipeline.name), left(sqlerrm, 200)
                using errcode = 'invalid_parameter_value', hint = (
                    select case
                        when count(*) = 1 then 'its key is '
                        else 'its keys are JSON arrays of '
                    end || string_agg(format('%s (%s)', name, type), ', ')
                    from jsonb_to_recordset(pipeline.key_columns) as listed (name text, type text)
                );
    end;
    return canonical;
end
$function$;

comment on function pgembed.canonical_keys is
    'Keys as they are written in queue and ledger; an error for one that cannot be of the pipeline''s key type. For the other functions.';

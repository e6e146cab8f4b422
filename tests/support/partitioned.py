"""Tables in parts."""

from __future__ import annotations

PARTITIONED = """
create table reports (body text, id int primary key) partition by range (id);
create table part_1 partition of reports for values from (0) to (100);
create table part_2 partition of reports for values from (100) to (200) partition by range (id);
create table part_2a partition of part_2 for values from (100) to (150);
insert into reports (id, body) values (1, 'one'), (2, 'two'), (101, 'more')
"""

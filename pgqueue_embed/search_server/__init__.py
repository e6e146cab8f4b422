"""Search over HTTP and for assistants: a warm encoder, batches of queries, a bounded pool.

`app.make_search_app` joins it all; `SearchService` is what every door, HTTP or MCP, asks.
"""

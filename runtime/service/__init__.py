"""`fairy serve`: HTTP and a page over editors in processes of their own.

A request becomes a row and a folder before it is answered (`uploads`, `jobs`); the dispatcher hands rows to warm
editors (`dispatcher`, `editor_link`, `editor_process`), whose progress reaches clients as events (`events`); results
are files (`files`). `videos` is the API (`requests` and `schema` say what it takes and gives, `streams` its events),
`access` says who may, `server` binds and ends it all.
"""

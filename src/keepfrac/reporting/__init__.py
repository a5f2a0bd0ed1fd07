"""`python -m src.report FOLDER`: a sweep's results.json files to tables, pictures, a page, records; no torch is imported.

From room to room: `cells` (one finished run, flat; `pooling` says which of its settings count), `arms` (runs that differ
by seed alone, summarised by `statistics`), `build` (a report's arms and notes). It is shown by `tables`, `terminal`,
`figure`, `front`, `paths` and `page`; `stages` is the table of a sweep of stages. `records` and `results` keep what git
tracks.
"""

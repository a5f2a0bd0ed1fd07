"""`python -m src.report FOLDER`: a sweep's results.json files to tables, pictures, a page, records. No torch.

From room to room: `cells` (one finished run, flat; `pooling`: which of its settings count), `arms` (runs that differ by
seed alone, summarised by `statistics`), `build` (a report's arms and notes). `tables`, `terminal`, `figure`, `front`,
`paths`, `page` show it; `stages` is the table of a sweep of stages. `records` and `results` keep what git tracks.
"""

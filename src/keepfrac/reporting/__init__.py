"""`python -m src.report FOLDER`: a sweep's results.json files to tables, curves, records. Never imports torch.

From room to room: `cells` (one finished run, flat), `arms` (runs that differ by seed alone, summarised by
`statistics`), `tables` and `figure`, bound together by `build`; `records` and `readme` keep what git tracks.
"""

"""report.html: one page that opens from disk, with no network and no server.

`content` is what it says, as plain values; `traces` reads what a run left beside results.json; `html` puts the
content, the style and the programs of `assets/` into one file. The programs draw with plotly in the browser.
"""

"""report.html: one page that opens from disk, with no network and no server.

`content` is what it shows, as plain values; `traces` reads a run's other files; `html` puts the content, the style and
the programs of `assets/` into one file. The programs draw with plotly in the browser.
"""

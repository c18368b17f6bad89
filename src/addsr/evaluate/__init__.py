"""Evaluation: methods run or read, pictures scored, reports written.

`run.evaluate` does the work; `commands` holds what the command line calls. `protocol` says which
pictures are measured and how, `pairs` finds them; `methods` and `foreign` are what is compared,
`results` runs or finds it, `elsewhere` reads figures of others; `score` measures pictures, `sets`
whole data sets, `cache` keeps both; `statistics` gives intervals; `report`, `tables`, `exhibits`
and `page` make what is read, `ab` the blind comparison.
"""

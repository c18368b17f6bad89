"""Many pictures: found, named, remembered in a manifest, and worked on in three overlapping stages.

`discovery` turns files, folders and patterns into pictures, `jobs` says where each result goes,
`manifest` remembers what is done, `run` reads, restores and writes (`passing` is what goes from one
stage to the next), `events` tells of it.
"""

"""Adapters: what others publish, row by row, as examples; chosen by the setting `adapter`, one file each.

Each has one function, `parse(row, kind) -> Example`. `row` is what stands in the file, untrusted; `kind` is prompts,
conversations or preferences. It raises Unfit with the reason under which a row that is no example is counted. Turns go
through `role`, `text` and `checked` of examples.py, or the row is brought into one of the shapes of general.py.
"""

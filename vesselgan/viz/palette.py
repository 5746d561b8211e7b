"""The colours of pages and charts: one name, one meaning, for light and for dark screens. Paper is light."""

COLOURS = {  # name -> on a light screen, on a dark one
    "paper": ("#fbfaf7", "#12151b"),
    "card": ("#ffffff", "#1a1f28"),
    "ink": ("#1b1f27", "#e7e9ee"),
    "soft": ("#5b6472", "#a3adbb"),
    "rule": ("#dcd9d0", "#343c49"),
    "faint": ("#eeece5", "#242b36"),
    "good": ("#1d7a46", "#7fdca4"),
    "good-bg": ("#e2f3e8", "#16382a"),
    "bad": ("#a8321f", "#ff9d8a"),
    "bad-bg": ("#fbe6e1", "#45201b"),
    "idle": ("#6b7280", "#aeb6c2"),
    "warn": ("#8a5a00", "#f0c060"),
    "bar": ("#8d97a6", "#66717f"),
    "vessel": ("#c8452f", "#ff6e58"),
    "mask": ("#0f7fb8", "#5cc8ff"),
    "s0": ("#1f66b0", "#74b3f4"),
    "s1": ("#c9640c", "#f5a75c"),
    "s2": ("#2e8b57", "#7fd6a0"),
    "s3": ("#8a4fbf", "#c79bf2"),
    "s4": ("#b8336a", "#f48fb1"),
    "s5": ("#6b7a1e", "#c5d36b"),
}
LIGHT, DARK = ({name: pair[k] for name, pair in COLOURS.items()} for k in (0, 1))
SERIES = ("s0", "s1", "s2", "s3", "s4", "s5")
"""Of the lines in a chart, in their order."""

"""One HTML file that shows what a recipe did: read the directory, let each section pick what it shows, render.

A new section is a module in `sections/` with `build(recipe) -> context or None`, a template of the same name in
`templates/`, and one line here; the order is that of the page.
"""

SECTIONS: dict[str, str] = {
    "overview": "Overview",
    "stages": "Stages",
    "accuracy": "Accuracy",
    "thinking": "Thinking",
    "soup": "Soup",
    "curves": "Curves",
    "mixture": "Data",
    "samples": "Samples",
    "notes": "Notes",
}
"""Module in `sail_train.report.sections` -> title in the page's navigation."""

"""The page's sections, one module each: `build(recipe) -> dict for the template, or None if there is nothing`."""

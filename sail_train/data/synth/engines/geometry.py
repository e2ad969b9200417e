r"""Geometry: figures drawn to scale, with worked steps.

basic     the third angle of a triangle, an angle beside another on a line, rectangles, a circle's area
simple    right triangles, isosceles triangles, exterior angles, trapezoids, parallelograms
complex   inscribed angles, similar triangles, sectors, a circle's chord, a right angle in a semicircle, composite areas

Answers are exact: whole numbers, reduced fractions \frac{p}{q} or multiples of \pi; where π = 3.14 is to be used the
question says so. Steps are in symbols, the same in both languages.
"""

from __future__ import annotations

import numpy as np

from sail_train.data.synth.engines import geometry_basic, geometry_complex, geometry_simple
from sail_train.data.synth.engines.figure import draw
from sail_train.data.synth.engines.item import Item, Request, pick, whole

WRITES = False

PROBLEMS = {
    "basic": geometry_basic.PROBLEMS,
    "simple": geometry_simple.PROBLEMS,
    "complex": geometry_complex.PROBLEMS,
}


def make(rng: np.random.Generator, request: Request) -> Item:
    problem = pick(rng, PROBLEMS[request.level])(rng)
    figure = problem.figure.turned(whole(rng, -25, 25))
    return Item(
        task=problem.task,
        images=(draw(figure, rng),),
        question=request.say(*problem.asked),
        thought="\n".join(problem.steps),
        answer=problem.answer,
        verifier=problem.verifier,
        facts={"given": problem.given, "figure": figure.facts()},
    )

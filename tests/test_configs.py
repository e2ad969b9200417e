"""Every shipped config composes into typed dataclasses, in folders of folders too, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.job import Job, load_recipe, resolve, resolve_entry
from sail_train.job.overrides import GROUPS, parse_tokens
from sail_train.loops import LOOPS

SHIPPED = Configs()
JUDGE = "rewards.judge.url=embedded"
"""What a recipe's `services: [judge]` sets; a stage that asks a judge names none itself."""

ENTRIES = [(recipe, entry.name) for recipe in SHIPPED.names("recipe") for entry in load_recipe(SHIPPED, recipe).entries]


def entry_job(recipe_name: str, entry_name: str, *tokens: str) -> Job:
    recipe = load_recipe(SHIPPED, recipe_name)
    return resolve_entry(SHIPPED, recipe, recipe.entry(entry_name), parse_tokens([f"recipe={recipe_name}", *tokens]))


@pytest.mark.parametrize("stage", SHIPPED.names("stage"))
def test_every_stage_composes_by_itself(stage: str) -> None:
    job = resolve(SHIPPED, parse_tokens([f"stage={stage}", JUDGE]))
    assert job.config.loop in LOOPS
    assert job.config.run_dir == f"runs/adhoc/{stage.replace('/', '-')}"


@pytest.mark.parametrize(("recipe", "entry"), ENTRIES)
def test_every_entry_of_every_recipe_composes(recipe: str, entry: str) -> None:
    job = entry_job(recipe, entry)
    assert job.config.run_dir == f"runs/{recipe}/{entry}"


@pytest.mark.parametrize("group", GROUPS)
def test_every_file_of_every_group_composes(group: str) -> None:
    for name in SHIPPED.names(group):
        job = resolve(SHIPPED, parse_tokens([f"stage={SHIPPED.names('stage')[0]}", f"{group}={name}", JUDGE]))
        assert job.config.run_dir


def test_every_yaml_file_belongs_to_a_group() -> None:
    groups = {"stage", "recipe", "import", *GROUPS}  # import: field maps, no part of a run
    strays = [path for path in CONFIGS.rglob("*.y*ml") if path.relative_to(CONFIGS).parts[0] not in groups]
    assert strays == [CONFIGS / "run.yaml"]
    assert not list(CONFIGS.rglob("*.yml")), "hydra reads .yaml only"


@pytest.mark.parametrize("recipe", SHIPPED.names("recipe"))
def test_two_entries_of_one_stage_differ_whatever_the_seed(recipe: str) -> None:
    jobs = [entry_job(recipe, entry.name, "seed=7") for entry in load_recipe(SHIPPED, recipe).entries]
    settings = [(job.stage, job.config.seed, str(job.config.optim.lr), str(job.config.data)) for job in jobs]
    assert len(set(settings)) == len(settings)


def test_composing_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from sail_train.job.compose import Configs\n"
        "from sail_train.job.job import resolve\n"
        "from sail_train.job.overrides import parse_tokens\n"
        f"resolve(Configs(), parse_tokens(['stage={SHIPPED.names('stage')[0]}', '{JUDGE}']))\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'datasets', 'wandb', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr

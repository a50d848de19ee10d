"""lab.benchmark.config and .reading: what a file may hold, and how it is refused."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from clipguard.compute.training import Recipe
from clipguard.defenses.clipguard import Clipguard
from clipguard.defenses.controls import Retrain
from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.cells import cell_name
from clipguard.lab.benchmark.config import (
    AttackChoice,
    BenchConfig,
    GuideChoice,
    cells,
    defense_of,
    read_config,
    recipe_of,
    variants,
)

CONFIGS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.toml"))


def config(tmp_path: Path, text: str) -> BenchConfig:
    file = tmp_path / "bench.toml"
    file.write_text(text)
    return read_config(file)


def test_an_empty_file_is_the_common_protocol(tmp_path):
    read = config(tmp_path, "")
    (cell,) = cells(read)
    assert (cell.data.name, cell.data.train_rows, cell.data.test_rows) == (
        "cifar10",
        (0, 12_000),
        (0, 10_000),
    )
    assert (cell.attack.name, cell.rate, cell.target, cell.seed) == ("badnets", 0.05, 0, 0)
    assert (cell.net, cell.guide.name) == ("preactresnet18-16", "mini")
    assert cell.recipe == Recipe(epochs=25, lr=0.05, crop=0.0)


def test_controls_are_there_whether_or_not_a_file_names_them(tmp_path):
    labels = [choice.label for choice in config(tmp_path, 'defenses = ["clipguard"]').defenses]
    assert labels == ["none", "clipguard", "retrain", "finetune"]
    labels = [choice.label for choice in config(tmp_path, 'defenses = ["finetune", "none"]').defenses]
    assert labels == ["none", "finetune", "retrain"]


def test_a_name_alone_stands_for_a_table_with_that_name(tmp_path):
    read = config(tmp_path, 'attacks = ["sig", {name = "blended", rate = 0.1, options = {alpha = 0.3}}]')
    assert read.attacks == (
        AttackChoice(name="sig"),
        AttackChoice(name="blended", rate=0.1, options={"alpha": 0.3}),
    )


def test_the_cells_are_all_combinations_and_an_attacks_own_rate_replaces_the_rates(tmp_path):
    read = config(
        tmp_path,
        'rates = [0.01, 0.1]\nseeds = [0, 1, 2]\nattacks = ["badnets", {name = "gcb", rate = 0.02}]\n'
        'guides = ["mini", {name = "mini", degrade = 0.5}]',
    )
    all_cells = list(cells(read))
    assert len(all_cells) == 2 * 3 * (2 + 1)
    assert {(cell.attack.name, cell.rate) for cell in all_cells} == {
        ("badnets", 0.01),
        ("badnets", 0.1),
        ("gcb", 0.02),
    }
    assert len({cell_name(cell) for cell in all_cells}) == len(all_cells)


def test_an_attacks_own_target_replaces_the_target(tmp_path):
    read = config(tmp_path, 'target = 3\nattacks = ["badnets", {name = "sig", target = 0}]')
    assert [(cell.attack.name, cell.target) for cell in cells(read)] == [("badnets", 3), ("sig", 0)]


def test_a_net_may_start_from_weights_and_is_another_cell(tmp_path):
    read = config(tmp_path, 'nets = ["resnet18", {name = "resnet18", weights = "w.safetensors"}]')
    plain, transfer = cells(read)
    assert (plain.weights, transfer.weights) == (None, "w.safetensors")
    assert cell_name(plain) != cell_name(transfer)


def test_an_attacks_own_seeds_replace_the_seeds_and_make_no_other_cell(tmp_path):
    read = config(tmp_path, 'attacks = [{name = "sig", seeds = [3, 4]}, "none"]\nseeds = [4]')
    all_cells = list(cells(read))
    assert [(cell.attack.name, cell.seed) for cell in all_cells] == [("sig", 3), ("sig", 4), ("none", 4)]
    plain = list(cells(config(tmp_path, 'attacks = ["sig"]\nseeds = [4]')))
    assert plain == [all_cells[1]]


def test_a_cells_name_changes_with_every_setting_and_is_a_file_name():
    (cell,) = cells(BenchConfig())
    odd = replace(cell, guide=GuideChoice(name="local-dir:../guides/x y"))
    names = {
        cell_name(other)
        for other in (
            cell,
            odd,
            replace(cell, seed=1),
            replace(cell, target=1),
            replace(cell, recipe=replace(cell.recipe, lr=0.06)),
            replace(cell, guide=replace(cell.guide, degrade=0.5)),
            replace(cell, data=replace(cell.data, imbalance=2.0)),
        )
    }
    assert len(names) == 7
    assert all(re.fullmatch(r"[\w.+-]+", name) for name in names)


def test_tables_change_only_what_they_name(tmp_path):
    read = config(
        tmp_path,
        "[victim]\nepochs = 3\n[defense_config]\nvictim = {epochs = 7}\n"
        '[[defenses]]\nname = "clipguard"\noptions = {config = {by = "retrain"}}',
    )
    assert read.victim == replace(BenchConfig().victim, epochs=3)
    made = {choice.name: defense_of(read, choice) for choice in read.defenses}
    own, retrain = made["clipguard"], made["retrain"]
    assert isinstance(own, Clipguard)
    assert isinstance(retrain, Retrain)
    usual = BenchConfig().defense_config
    changed = replace(usual, victim=replace(usual.victim, epochs=7))
    assert retrain.config == changed
    assert own.config == replace(changed, by="retrain")


def test_a_net_may_have_a_recipe_of_its_own(tmp_path):
    read = config(tmp_path, 'nets = ["shallow", {name = "vit", victim = {optimizer = "adam", lr = 1}}]')
    one, other = (recipe_of(read, net, read.attacks[0]) for net in read.nets)
    assert one == read.victim
    assert other == replace(read.victim, optimizer="adam", lr=1.0)


def test_an_attacks_own_recipe_goes_before_the_nets_and_makes_no_other_cell(tmp_path):
    read = config(
        tmp_path,
        'nets = [{name = "vit", victim = {optimizer = "adam", epochs = 3}}]\n'
        'attacks = ["sig", {name = "wanet", victim = {epochs = 50}}]',
    )
    usual, longer = (cell.recipe for cell in cells(read))
    assert usual == replace(read.victim, optimizer="adam", epochs=3)
    assert longer == replace(usual, epochs=50)
    (one,) = cells(config(tmp_path, 'attacks = ["wanet"]\nvictim = {epochs = 50}'))
    (same,) = cells(config(tmp_path, 'attacks = [{name = "wanet", victim = {epochs = 50}}]'))
    assert one == same
    assert cell_name(one) == cell_name(same)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes = [1]", "unknown key 'sedes': give one of data, attacks"),
        ("[victim]\nepoch = 3", "key victim: unknown key 'epoch'"),
        ('attacks = [{name = "sig", victim = {epoch = 3}}]', "attack sig: unknown key 'epoch'"),
        ('attacks = [{name = "sig", rat = 0.1}]', r"key attacks\[0\]: unknown key 'rat'"),
        ("attacks = [{rate = 0.1}]", r"missing required field `name` - at `\$.attacks\[0\]`"),
        ('seeds = ["a"]', r"Expected `int`, got `str` - at `\$.seeds\[0\]`"),
        ("seeds = [true]", r"Expected `int`, got `bool` - at `\$.seeds\[0\]`"),
        ("seeds = 3", r"Expected `array`, got `int` - at `\$.seeds`"),
        ("target = 1.5", r"Expected `int`, got `float` - at `\$.target`"),
        ("victim = 3", r"Expected `object`, got `int` - at `\$.victim`"),
        ('data = [{name = "x", train_rows = [1]}]', r"length 2, got 1 - at `\$.data\[0\].train_rows`"),
        (
            '[victim]\noptimizer = "lion"',
            r"'lion' - at `\$.victim.optimizer`: give one of sgd, plain-sgd, adam",
        ),
        ("seeds = []", r"Expected `array` of length >= 1 - at `\$.seeds`"),
        ("seeds = [1, 1]", "key seeds: the list holds 1 twice"),
        ("rates = [5]", r"Expected `float` < 1.0 - at `\$.rates\[0\]`"),
        ("rates = [nan]", r"Expected `float` > 0.0 - at `\$.rates\[0\]`"),
        ('attacks = [{name = "sig", rate = 0}]', r"Expected `float` > 0.0 - at `\$.attacks\[0\].rate`"),
        ('attacks = [{name = "sig", seeds = []}]', r"length >= 1 - at `\$.attacks\[0\].seeds`"),
        (
            'guides = [{name = "mini", degrade = 1.5}]',
            r"Expected `float` <= 1.0 - at `\$.guides\[0\].degrade`",
        ),
        ('data = [{name = "x", imbalance = 0.5}]', r"Expected `float` >= 1.0 - at `\$.data\[0\].imbalance`"),
        ('defenses = ["clipguard", "clipguard"]', "two rows would be 'clipguard': give each a label"),
        ('defenses = [{name = "clipguard", label = "reference"}]', "two rows would be 'reference'"),
        (
            'defenses = [{name = "nad", label = "nad 1x"}, {name = "nad", label = "nad-1x"}]',
            "two rows would be 'nad 1x' and 'nad-1x' in one file: give each a label",
        ),
        ('defenses = [{name = "nad", label = "nad.failed"}]', "ends as the files of failed rows do"),
        (
            'attacks = ["badnets", {name = "badnets", seeds = [1, 0]}]',
            "attack 'badnets' at rate 0.05 with seed 0 is there twice",
        ),
        ('attacks = ["sig", {name = "sig", rate = 0.05}]', "attack 'sig' at rate 0.05 with seed 0"),
        ('defenses = ["magic"]', "unknown defence 'magic'"),
        ('defenses = [{name = "clipguard", options = {config = {sise = 3}}}]', "unknown key 'sise'"),
        ('nets = [{name = "x", victim = {epoch = 3}}]', "net x, attack badnets: unknown key 'epoch'"),
        ('attacks = ["badnetz"]', "key attacks: unknown attack 'badnetz'"),
        ('attacks = [{name = "sig", options = {amplitud = 3}}]', "attack sig has no option 'amplitud'"),
        ('attacks = [{name = "sig", options = {rate = 0.1}}]', "rate is no setting of one attack's own"),
        ("[victim]\nepochs = 0", "epochs, batch_size and lr of victim must be positive"),
        ("[victim]\nlr = -1.0", "epochs, batch_size and lr of victim must be positive"),
        ('nets = [{name = "x", victim = {batch_size = 0}}]', "net x, attack badnets: epochs, batch_size"),
        ('data = [{name = "x", imbalance = nan}]', r"Expected `float` >= 1.0 - at `\$.data\[0\].imbalance`"),
        ('data = [{name = "x", size = [0, 32]}]', r"Expected `int` >= 1 - at `\$.data\[0\].size\[0\]`"),
        ('data = [{name = "x", train = "a"}]', "x has only one of train and test"),
        ("[defense_config]\nseed = 3", "the seed is each cell's"),
        ('[defense_config]\nby = "retrain"', "retraining is a row of its own"),
        ('defenses = [":x"]', "cannot be imported"),
        ("seeds = [", "cannot be read as TOML"),
        (f"seeds = [{1 << 63}]", r"<= 9223372036854775807 - at `\$.seeds\[0\]`"),
        (f"reference_seeds = [{-(1 << 63) - 1}]", r">= -9223372036854775808 - at `\$.reference_seeds\[0\]`"),
        (f'attacks = [{{name = "sig", seeds = [{1 << 63}]}}]', r"at `\$.attacks\[0\].seeds\[0\]`"),
        ("seeds = [1]\n" + "a." * 1001 + "a = 1", "line 2 has more than 1000 dots"),
        ("defense_config = " + "{a=" * 20_000, "nested too deep"),
    ],
)
def test_a_mistake_is_refused_in_one_line_that_names_file_and_key(tmp_path, text, message):
    with pytest.raises(ClipguardError, match=message) as caught:
        config(tmp_path, text)
    assert "bench.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ClipguardError, match="cannot be read as TOML"):
        read_config(tmp_path / "no.toml")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_benchmarks_of_this_repository_can_be_read(file, monkeypatch):
    # Where defences of their own are.
    monkeypatch.syspath_prepend(file.parent)
    assert list(cells(read_config(file)))


def test_cells_that_share_all_axes_are_told_apart_by_what_differs(tmp_path):
    read = config(
        tmp_path,
        'attacks = [{name = "blended", options = {alpha = 0.2}},'
        ' {name = "blended", options = {alpha = 0.9}},'
        ' {name = "blended", options = {mapping = "all-to-all"}},'
        ' {name = "sig", options = {frequency = 3}}]\n'
        'data = ["cifar10", {name = "cifar10", imbalance = 50}, "gtsrb"]\nseeds = [0, 1]',
    )
    texts = [(cell.data.name, cell.attack.name, cell.seed, text) for cell, text in variants(read)]
    assert len(texts) == 3 * 4 * 2
    assert len({(data, attack, text) for data, attack, _, text in texts}) == 3 * 4
    assert ("gtsrb", "blended", 1, "alpha 0.9") in texts
    assert ("cifar10", "sig", 0, "imbalance 50.0") in texts
    assert ("gtsrb", "sig", 0, "") in texts
    assert all(text == "" for _, text in variants(config(tmp_path, "seeds = [0, 1]")))


def test_what_changes_nothing_has_one_rate_only(tmp_path):
    read = config(tmp_path, 'attacks = ["none", "sig"]\nrates = [0.05, 0.1]')
    assert [(cell.attack.name, cell.rate) for cell in cells(read)] == [
        ("none", 0.05),
        ("sig", 0.05),
        ("sig", 0.1),
    ]


def test_class_names_are_part_of_a_cell(tmp_path):
    (plain,) = cells(config(tmp_path, ""))
    (named,) = cells(config(tmp_path, 'data = [{name = "cifar10", classes = ["a", "b"]}]'))
    assert plain.data.classes == ()
    assert named.data.classes == ("a", "b")
    assert cell_name(plain) != cell_name(replace(plain, data=named.data))

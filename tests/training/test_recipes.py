"""Recipes by backbone: the peers' figures, which layer a value comes from, and whose figure it is."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from faceshards.cli.main import main
from faceshards.errors import ConfigError
from tests.training.runs import SETTINGS, arguments, refused, trace, train
from training.backbones.registry import BACKBONES
from training.config import RECIPES, TrainConfig, load_recipe
from training.recipes import FIGURES, OURS, read_recipe, resolve
from training.run import Request
from training.setup import write_config


@dataclass(frozen=True)
class Peer:
    """What a configuration of arcface_torch says (recognition/arcface_torch/configs); batch: of all GPUs."""

    config: str
    margin: tuple[float, float, float]
    lr: float = 0.1
    batch: int = 8 * 128
    weight_decay: float = 5e-4
    epochs: int = 20
    warmup: float = 0
    sample_rate: float = 1
    optimizer: str = "sgd"
    parts: int = 1  # gradient_acc
    drop_path: float | None = None  # of the transformers
    mask_ratio: float | None = None  # that its vit.py comes to: 0.1 for whatever is above 0


ARC, COS = (1.0, 0.5, 0.0), (1.0, 0.0, 0.4)
LARGE = {"lr": 0.4, "warmup": 2}
VIT = {
    **{"lr": 1e-3, "batch": 64 * 384, "weight_decay": 0.1, "epochs": 40, "warmup": 4, "sample_rate": 0.3},
    **{"optimizer": "adamw", "drop_path": 0.05},
}
PEERS = {
    **{(ms1m, name): Peer(f"{ms1m}_{name}", ARC) for ms1m in ("ms1mv2", "ms1mv3") for name in ("r50", "r100")},
    **{(ms1m, "mbf"): Peer(f"{ms1m}_mbf", ARC, weight_decay=1e-4, epochs=40) for ms1m in ("ms1mv2", "ms1mv3")},
    **{("glint360k", name): Peer(f"glint360k_{name}", COS, weight_decay=1e-4) for name in ("r50", "r100", "mbf")},
    **{(f"webface{n}m", name): Peer(f"wf{n}m_{name}", COS) for n in (4, 12) for name in ("r50", "r100")},
    **{(f"webface{n}m", "mbf"): Peer(f"wf{n}m_mbf", COS, weight_decay=1e-4) for n in (4, 12)},
    ("webface42m", "r50"): Peer("wf42m_pfc02_8gpus_r50_bs4k", COS, batch=8 * 512, sample_rate=0.2, **LARGE),
    ("webface42m", "r100"): Peer("wf42m_pfc02_r100", COS, sample_rate=0.2),
    ("webface42m", "mbf"): Peer(
        "wf42m_pfc02_16gpus_mbf_bs8k", COS, batch=16 * 512, weight_decay=1e-4, sample_rate=0.2, **LARGE
    ),
    ("webface42m", "r18"): Peer("wf42m_pfc03_32gpu_r18", COS, batch=32 * 128, sample_rate=0.3, **LARGE),
    ("webface42m", "r200"): Peer("wf42m_pfc03_32gpu_r200", COS, batch=32 * 128, sample_rate=0.3, **LARGE),
    ("webface42m", "vit_t"): Peer("wf42m_pfc03_40epoch_64gpu_vit_t", COS, mask_ratio=0.0, **VIT),
    ("webface42m", "vit_s"): Peer("wf42m_pfc03_40epoch_64gpu_vit_s", COS, mask_ratio=0.0, **VIT),
    ("webface42m", "vit_b"): Peer(
        "wf42m_pfc03_40epoch_8gpu_vit_b", COS, mask_ratio=0.1, parts=12, **{**VIT, "batch": 8 * 256 * 12}
    ),
    ("webface42m", "vit_l"): Peer("wf42m_pfc03_40epoch_64gpu_vit_l", COS, mask_ratio=0.1, **VIT),
}
ALL = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def resolved(recipe, settings):
    return resolve(read_recipe(RECIPES / f"{recipe}.yaml"), settings, TrainConfig())


@pytest.mark.parametrize(("recipe", "backbone"), PEERS)
def test_a_recipe_has_the_figures_of_the_peer_it_names(recipe, backbone):
    peer = PEERS[recipe, backbone]
    found = resolved(recipe, {"backbone": backbone})
    config = found.config
    assert found.source == f"arcface_torch {peer.config}"
    assert config.peak_lr() == pytest.approx(peer.lr)
    assert (config.lr, config.lr_batch, config.global_batch) == (peer.lr, peer.batch, peer.batch)
    assert (config.weight_decay, config.epochs, config.warmup_epochs) == (peer.weight_decay, peer.epochs, peer.warmup)
    assert (config.margin, config.sample_rate, config.optimizer) == (peer.margin, peer.sample_rate, peer.optimizer)
    assert config.accumulate == peer.parts
    if peer.drop_path is not None:
        assert (config.drop_path, config.mask_ratio) == (peer.drop_path, peer.mask_ratio)
    # What its code fixes, or all its configurations say: train_v2.py, lr_scheduler.py, losses.py, dataset.py.
    assert (config.schedule, config.power, config.momentum, config.clip) == ("polynomial", 1.0, 0.9, 5.0)
    assert (config.scale, config.embedding_size, config.interclass_threshold) == (64.0, 512, 0.0)
    assert (config.sampling, config.mirror, config.augment, config.sync_bn) == ("instance", True, False, False)
    # Each of these is said to be the peer's, and nothing that it does not decide.
    own = {"drop_path", "mask_ratio"} if peer.drop_path is not None else set()
    named = {name for name in vars(config) if found.source_of(name) != OURS}
    assert named == FIGURES - {"drop_path", "mask_ratio", "milestones", "gamma"} | own


def test_what_the_docs_say_of_wf12m_pfc02_r100():
    found = resolved("webface12m", {"backbone": "r100", "sample_rate": 0.2})
    whole = resolved("webface12m", {"backbone": "r100"})
    assert (found.config.sample_rate, found.changed) == (0.2, ("sample_rate",))
    assert dataclasses.replace(found.config, sample_rate=1.0) == whole.config


def test_explained_with_another_margin():
    for text, value in (
        ("adaface", "adaface"),
        ("{name: adaface, h: 5e-1}", {"name": "adaface", "h": 0.5}),  # which YAML 1.1 reads as a text
    ):
        content = json.loads(explain("webface4m", "--json", "--set", f"margin={text}").stdout)
        assert content["settings"]["margin"] == {"value": value, "origin": "--set", "source": "ours"}
        assert content["changed"] == ["margin"]
    result = explain("webface4m", "--set", "margin=magface")
    assert refused(result).startswith("Error: margin: 'magface' is not one of combined, adaface, subcenter, nor [m1, ")


@pytest.mark.parametrize("recipe", ALL)
def test_no_combination_is_without_a_source(recipe):
    entries = read_recipe(RECIPES / f"{recipe}.yaml").backbones
    assert set(entries) <= set(BACKBONES)
    for backbone in BACKBONES:
        found = resolved(recipe, {"backbone": backbone})
        peer = PEERS.get((recipe, backbone))
        assert found.source == (f"arcface_torch {peer.config}" if peer else OURS)
        assert set(found.origins) == set(vars(found.config))
        assert set(found.origins.values()) <= {"default", "recipe file", f"backbones: {backbone}", "--set"}
        assert {found.source_of(name) for name in found.origins} <= {found.source, OURS}
        # No ViT is left to SGD, no CNN to AdamW; synthetic is for one backbone.
        vit = backbone.startswith("vit") and recipe != "synthetic"
        assert found.config.optimizer == ("adamw" if vit else "sgd")


@pytest.fixture
def mine(tmp_path):
    """A recipe in which each layer has the last word on something."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "source: a peer's r50\nlr: 0.2\nepochs: 3\nweight_decay: 0.01\n"
        "backbones:\n  r50: {source: a peer's r50, clip: 2}\n"
        "  mbf: {source: a peer's mbf, epochs: 4, weight_decay: 5e-05}\n"
    )
    return path


def test_the_order_of_layers(mine):
    config = load_recipe(str(mine), {"backbone": "mbf", "weight_decay": 0.5})
    assert config == TrainConfig(backbone="mbf", lr=0.2, epochs=4, weight_decay=0.5)
    assert load_recipe(str(mine), {}) == TrainConfig(lr=0.2, epochs=3, weight_decay=0.01, clip=2.0)
    assert load_recipe(str(mine), {"backbone": "r34"}) == TrainConfig(
        backbone="r34", lr=0.2, epochs=3, weight_decay=0.01
    )


def explain(*options):
    return CliRunner().invoke(main, ["train", *map(str, options), "--explain"])


def test_explained(mine):
    result = explain(mine, "--set", "backbone=mbf", "--set", "weight_decay=0.5", "--set", "device=GPU")
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()
    assert head == "mine with mbf, figures: ours (a peer's mbf but for weight_decay)"
    table = {row.split()[0]: " ".join(row.split()[1:]) for row in rows}
    assert table["backbone"] == "mbf --set a peer's mbf"
    assert table["lr"] == "0.2 recipe file a peer's mbf"
    assert table["epochs"] == "4 backbones: mbf a peer's mbf"
    assert table["power"] == "1.0 default a peer's mbf"
    assert table["weight_decay"] == "0.5 --set ours"
    assert table["device"] == "GPU --set ours"
    assert set(table) == {"setting", *vars(TrainConfig())}


def test_explained_as_json(mine):
    content = json.loads(explain("ms1mv3", "--set", "backbone=mbf", "--json").stdout)
    assert content["recipe"] == str(RECIPES / "ms1mv3.yaml")
    assert (content["backbone"], content["source"], content["changed"]) == ("mbf", "arcface_torch ms1mv3_mbf", [])
    assert content["settings"]["epochs"] == {
        "value": 40,
        "origin": "backbones: mbf",
        "source": "arcface_torch ms1mv3_mbf",
    }
    assert content["settings"]["seed"] == {"value": 0, "origin": "default", "source": "ours"}
    assert set(content["settings"]) == set(vars(TrainConfig()))
    # The peer's own value said once more is still the peer's; another is not.
    for lr, source in ((0.1, "arcface_torch ms1mv3_r50"), (0.2, "ours")):
        content = json.loads(explain("ms1mv3", "--json", "--set", f"lr={lr}").stdout)
        assert (content["source"], content["settings"]["lr"]["source"]) == (source, source)
    # No peer has this one.
    content = json.loads(explain("ms1mv3", "--json", "--set", "backbone=r34").stdout)
    assert {content["source"], *(entry["source"] for entry in content["settings"].values())} == {"ours"}


def test_without_explain_a_run_needs_its_folders(tmp_path):
    for given, lacks in (([], "--data"), (["--data", str(tmp_path)], "--out")):
        result = CliRunner().invoke(main, ["train", "synthetic", *given])
        assert result.exit_code == 2
        assert f"Error: Missing option '{lacks}'." in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbones: {r51: {lr: 1}}", "mine.yaml: backbones: 'r51' is not one of r18, r34, r50"),
        ("backbones: {R50: {lr: 1}}", "mine.yaml: backbones: 'R50' is not one of r18, r34, r50"),
        ("backbones: {r50: {rl: 1}}", "mine.yaml: backbones: r50: unknown key 'rl'; known keys: backbone, "),
        ("backbones: {mbf: {lr: fast}}", "mine.yaml: backbones: mbf: lr: 'fast' is not of type float"),
        ("backbones: {mbf: {warmup_epochs: 30}}", "mine.yaml: backbones: mbf: warmup_epochs: 30.0 is outside 0..20"),
        ("backbones: {mbf: {backbones: {}}}", "mine.yaml: backbones: mbf: unknown key 'backbones'"),
        ("backbones: {mbf: {backbone: r50}}", "mine.yaml: backbones: mbf: an entry has no backbone of its own"),
        ("backbones: {mbf: 3}", "mine.yaml: backbones: mbf: holds no mapping of names to values"),
        ("backbones: {mbf: {1: 2}}", "mine.yaml: backbones: mbf: holds no mapping of names to values"),
        ("backbones: {50: {lr: 1}}", "mine.yaml: backbones: holds no mapping of backbones to settings"),
        ("backbones: [mbf]", "mine.yaml: backbones: holds no mapping of backbones to settings"),
        ("backbones: []", "mine.yaml: backbones: holds no mapping of backbones to settings"),
        ("backbones: {mbf: false}", "mine.yaml: backbones: mbf: holds no mapping of names to values"),
        ("backbones: mbf", "mine.yaml: backbones: holds no mapping of backbones to settings"),
        ("backbone: {mbf: {lr: 1}}", "mine.yaml: backbone: {'mbf': {'lr': 1}} is not of type str"),
        ("source: 3", "mine.yaml: source: 3 is not a peer's configuration, or ours"),
        ("backbones: {mbf: {source: ''}}", "mine.yaml: backbones: mbf: source: '' is not a peer's configuration"),
        ("backbones:\n  mbf: {lr: 1}\n  mbf: {lr: 2}", "mine.yaml: line 3: 'mbf' comes twice"),
        ("lr: 1\nepochs: 2\nlr: 2", "mine.yaml: line 3: 'lr' comes twice"),
    ],
)
def test_a_recipe_that_cannot_be(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    assert message in refused(explain(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("backbones={}", "--set: unknown key 'backbones'"),
        ("source=me", "--set: unknown key 'source'"),
        ("backbone=[r50]", "--set: backbone: ['r50'] is not of type str"),
        ("backbone=r51", "backbone: 'r51' is not one of r18, r34, r50"),
    ],
)
def test_a_setting_that_cannot_be(setting, message):
    assert message in refused(explain("ms1mv3", "--set", setting))


def test_nothing_behind_a_colon_is_nothing(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 2\nbackbones:\n  mbf:\n")
    assert load_recipe(str(tmp_path / "mine.yaml"), {"backbone": "mbf"}) == TrainConfig(backbone="mbf", epochs=2)
    (tmp_path / "mine.yaml").write_text("epochs: 2\nbackbones:\n")
    assert load_recipe(str(tmp_path / "mine.yaml"), {}) == TrainConfig(epochs=2)


def test_the_settings_that_a_run_writes_are_a_recipe_of_the_same(tmp_path):
    config = load_recipe("webface42m", {"backbone": "vit_b", "threads": 3})
    write_config(config, tmp_path / "config.yaml")
    assert load_recipe(str(tmp_path / "config.yaml"), {}) == config


SILENT = {"epochs": 1, "warmup_epochs": 0, "checkpoint_steps": 5, "keep": 9}


@pytest.mark.slow
def test_a_run_goes_on_by_the_defaults_it_began_with(data, run, tmp_path, caplog):
    out = tmp_path / "run"  # as it was when it was killed after its first checkpoint
    shutil.copytree(run, out)
    (out / "result.json").unlink()
    for later in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    assert "power" not in SETTINGS
    result = train(data.path, out, "--resume", **SILENT)
    assert result.exit_code == 0, result.output
    assert f"{out}: goes on with power 2.0, as it began; the defaults are others" in caplog.messages
    assert trace(out) == trace(run)
    assert "power: 2.0" in (out / "config.yaml").read_text()


@pytest.mark.slow
def test_what_a_recipe_says_is_not_taken_from_the_checkpoint(data, run):
    other = {**SILENT, "power": 1.0, "margin": [1, 0, 0.3]}
    message = refused(train(data.path, run, "--resume", **other))
    assert "made with margin [1.0, 0.0, 0.2], now [1.0, 0.0, 0.3]; choose another --out for a new run" in message
    assert message.endswith("or go on as it began: --set 'margin=[1.0, 0.0, 0.2]' --set power=2.0")
    as_it_began = ["--set", "margin=[1.0, 0.0, 0.2]", "--set", "power=2.0"]
    assert train(data.path, run, "--resume", *as_it_began, **other).exit_code == 0


@pytest.mark.slow
def test_explained_of_a_run_that_goes_on(data, run):
    recipe, *rest = arguments(data.path, run, "--resume", "--json", **SILENT)
    settings = json.loads(explain(recipe, *rest).stdout)["settings"]
    assert settings["power"] == {"value": 2.0, "origin": "checkpoint", "source": "ours"}
    assert settings["threads"]["origin"] == "recipe file"
    assert settings["momentum"]["origin"] == "default"
    assert Request(recipe, {}, data.path, run).config().power == 1.0


def test_unknown_keys_name_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("lrr: 1\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key 'lrr'"):
        load_recipe(str(tmp_path / "mine.yaml"), {})


def test_no_recipe_names_a_device():
    """What a recipe says holds on every machine."""
    assert all("device" not in read_recipe(path).own.values for path in RECIPES.glob("*.yaml"))

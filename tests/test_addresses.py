"""Where each module is tested: a file of its own name, or the address that stands here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]

#: File of tests -> the modules that it is the address of.
ADDRESSES = {
    "backbones/test_attention.py": "bench/backbones/backbone",
    "backbones/test_open_clip.py": (
        "bench/backbones/open_clip_backbone bench/backbones/open_clip_towers bench/backbones/hub"
    ),
    "backbones/test_timm.py": "bench/backbones/timm_backbone bench/backbones/timm_towers",
    "backbones/test_weight_files.py": "bench/backbones/weights",
    "runs/test_hostile_files.py": "bench/backbones/inert bench/storage/pickles",
    "cli/test_run.py": (
        "bench/cli/methods bench/console/options bench/console/progress bench/runs/illustrate"
    ),
    "cli/test_listing.py": (
        "bench/cli/backbones bench/cli/doctor bench/cli/suites bench/cli/show bench/cli/clean"
    ),
    "cli/test_data.py": "bench/data/prepare bench/data/verify",
    "cli/test_output.py": "bench/tables/table bench/plain bench/errors",
    "cli/test_sweep_console.py": "bench/console/sweep_plan bench/sweeps/estimate",
    "contract/test_every_method.py": (
        "bench/testing/method_contract bench/method bench/task bench/fit_setup"
    ),
    "contract/test_suite_checks.py": (
        "bench/testing/check bench/testing/suite_contract bench/cli/check"
    ),
    "data/test_card.py": "bench/data/cards/suite_card bench/data/cards/dataset",
    "data/test_corruption.py": "bench/data/corruptions/generate",
    "data/test_fetch.py": "bench/data/fetching/download bench/data/fetching/unpack",
    "data/test_generated.py": "bench/data/corruptions/corrupted",
    "data/test_packed.py": (
        "bench/data/readers/archive bench/data/readers/parquet bench/data/readers/shard_images"
        " bench/data/readers/index_cache bench/data/readers/located bench/data/readers/parts"
    ),
    "data/test_common_layouts.py": (
        "bench/data/readers/class_folders bench/data/readers/ground_truth"
        " bench/data/readers/tables bench/storage/files"
    ),
    "data/test_pixel_cache.py": "bench/data/pixels/cache bench/data/pixels/decoder",
    "data/test_suite.py": "bench/data/indexing bench/data/split",
    "datasets/test_imagenet.py": "bench/data/cards/labels",
    "datasets/test_mini.py": (
        "datasets/mini/backgrounds datasets/mini/render datasets/mini/scenes"
        " datasets/mini/silhouettes datasets/mini/styles datasets/mini/world"
        " scripts/mini_captions scripts/mini_sheet"
    ),
    "backbones/test_mini_clip.py": "scripts/mini_pretrain",
    "leaderboard/test_baseline.py": "scripts/baselines",
    "leaderboard/test_board.py": (
        "leaderboard/board/groups leaderboard/board/rows leaderboard/board/measures"
        " leaderboard/board/tables leaderboard/board/notes"
    ),
    "leaderboard/test_pairs.py": "leaderboard/board/ties",
    "leaderboard/test_charts.py": (
        "leaderboard/board/frames leaderboard/charts/diagrams leaderboard/charts/scatter"
    ),
    "leaderboard/test_looks.py": (
        "leaderboard/charts/style leaderboard/page/figures scripts/boards"
    ),
    "leaderboard/test_command.py": (
        "leaderboard/commands/leaderboard leaderboard/commands/selection"
    ),
    "leaderboard/test_compare_command.py": "leaderboard/commands/compare",
    "leaderboard/test_exports.py": (
        "leaderboard/commands/plot leaderboard/commands/report leaderboard/commands/reproduce"
        " leaderboard/page/report leaderboard/reported"
    ),
    "leaderboard/test_pack.py": (
        "leaderboard/packs/checks leaderboard/packs/merge leaderboard/packs/rescoring"
        " leaderboard/packs/true_labels"
        " leaderboard/commands/sharing"
    ),
    "leaderboard/test_page.py": (
        "leaderboard/page/document leaderboard/page/details leaderboard/page/values"
        " leaderboard/page/source"
    ),
    "leaderboard/test_scores.py": "leaderboard/statistics/calibration",
    "leaderboard/test_comparison.py": (
        "leaderboard/statistics/resampling leaderboard/statistics/strata"
        " leaderboard/statistics/predictions"
    ),
    "methods/test_fine_tuners.py": (
        "methods/feature_distillation methods/full_finetune methods/lp_ft"
        " methods/masked_counterfactual bench/training/step"
    ),
    "methods/test_wise_ft.py": "bench/classifier",
    "runs/test_checkpoints.py": "bench/runs/external bench/cli/evaluate",
    "runs/test_execute.py": "bench/runs/experiment bench/training/loop bench/engine",
    "runs/test_identity.py": "bench/configure bench/run_spec",
    "runs/test_exits.py": "bench/plugins bench/stopping",
    "runs/test_lease.py": "bench/storage/atomic",
    "runs/test_predictions_saved.py": "bench/results/predictions",
    "runs/test_records.py": ("bench/results/record bench/results/store bench/results/provenance"),
    "runs/test_status.py": "bench/runs/measure",
    "sweeps/test_faults.py": "bench/sweeps/job bench/sweeps/local bench/sweeps/worker",
    "sweeps/test_plan.py": "bench/sweeps/queue",
    "sweeps/test_ray_cluster.py": (
        "bench/sweeps/ray/dispatch bench/sweeps/ray/runner bench/sweeps/ray/trial"
    ),
    "sweeps/test_ray_session.py": "bench/sweeps/ray/session",
    "sweeps/test_search.py": "bench/sweeps/search/samplers bench/sweeps/search/trials",
}


def test_every_module_has_a_file_of_its_name_or_an_address() -> None:
    modules = {
        file.relative_to(ROOT).with_suffix("")
        for folder in ("bench", "methods", "datasets", "leaderboard", "scripts")
        for file in (ROOT / folder).rglob("*.py")
        if not file.stem.startswith("__")
    }
    own = {file.stem.removeprefix("test_") for file in (ROOT / "tests").rglob("test_*.py")}
    addressed = [Path(name) for names in ADDRESSES.values() for name in names.split()]
    assert len(addressed) == len(set(addressed)), "one address for each"
    assert [file for file in ADDRESSES if not (ROOT / "tests" / file).is_file()] == []
    assert set(addressed) - modules == set(), "these modules are no more"
    without = {module for module in modules if module.stem not in own}
    assert without - set(addressed) == set(), "these modules have no address"

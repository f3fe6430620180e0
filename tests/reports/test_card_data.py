"""The metadata of model cards, what they leave out, and the card of a converted checkpoint."""

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from helpers import golden_models
from helpers.hub_storage import metadata
from hf_segkd.commands import convert, push
from hf_segkd.recipe import dump, load_yaml
from hf_segkd.reports.model_card import model_card, update_model_card, write_model_card
from hf_segkd.reports.run_folder import draw
from hf_segkd.values import without_paths


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def header(folder, **options) -> dict:
    return metadata(model_card(folder, **options))


def test_no_license_is_made_up(copied):
    """A license that nobody gave is a promise in somebody else's name."""
    assert "license" not in header(copied) and "No license was given for the weights" in model_card(copied)
    assert header(copied, license="mit")["license"] == "mit"
    assert "License of the weights: mit." in model_card(copied, license="mit")


def test_a_license_given_once_stays(copied):
    """The next upload would else take back what the first one granted."""
    write_model_card(copied, license="mit")
    assert update_model_card(copied, "alice/student")
    assert metadata((copied / "README.md").read_text())["license"] == "mit"
    assert update_model_card(copied, "alice/student", license="apache-2.0")
    assert update_model_card(copied, "alice/student")
    assert metadata((copied / "README.md").read_text())["license"] == "apache-2.0"


def test_a_license_of_another_spelling_is_refused(copied):
    """The Hub knows apache-2.0; under any other name nobody finds the model by its license."""
    with pytest.raises(ValueError, match="apache-2.0, mit.*got 'Apache 2.0'"):
        model_card(copied, license="Apache 2.0")


def test_start_teacher_and_dataset_of_the_hub_are_named_for_its_filters(copied):
    """The Hub draws the tree of models, and lists those of a dataset, from these keys alone."""
    edit(copied / "metrics.json", hub={"dataset": "al/city", "student": "al/start"})
    recipe = load_yaml((copied / "recipe.yaml").read_text())
    dump({**recipe, "student": "al/start", "teacher": "al/big", "teacher_revision": "1a2b"}, copied / "recipe.yaml")
    found = header(copied)
    assert (found["base_model"], found["base_model_relation"]) == ("al/start", "finetune")
    assert found["datasets"] == ["al/city"] and found["teacher_model"] == ["al/big"]
    text = model_card(copied)
    assert "[al/start](https://huggingface.co/al/start)" in text
    assert "[al/big](https://huggingface.co/al/big/tree/1a2b)" in text
    assert {x["dataset"]["type"] for x in found["model-index"][0]["results"]} == {"al/city"}
    assert found["metrics"] == ["mean_iou", "accuracy"]


def test_what_is_not_on_the_hub_is_not_named_as_if_it_were(copied):
    """A link to a repository that does not exist, or worse, to that of a stranger."""
    assert not header(copied).keys() & {"base_model", "base_model_relation", "datasets", "teacher_model"}


def test_the_widget_shows_the_sample_where_there_is_one(finished, copied):
    """An empty box on the page is worse than none."""
    assert header(finished)["widget"][0]["src"] == "figures/sample.png" and (finished / "figures/sample.png").is_file()
    assert "widget" not in header(copied)


def test_no_path_of_the_machine_is_in_the_card(finished):
    """A user's name and the places of other people's data are nobody's business."""
    assert str(finished.parent) in (finished / "recipe.yaml").read_text()  # the run can be repeated here
    assert str(finished.parent) not in model_card(finished)


@pytest.mark.parametrize(
    ("path", "released"),
    [
        ("/home/alice/data/CamVid", "CamVid"),
        ("~/models/teacher", "teacher"),
        ("../data", "data"),
        (r"C:\Users\alice\CamVid", "CamVid"),
        ("alice/model", "alice/model"),
        ("runs/teacher", "runs/teacher"),
        ("{model_type: espnet}", "{model_type: espnet}"),
    ],
)
def test_paths_are_shortened_and_nothing_else(path, released):
    """Ids and names of the Hub have slashes too."""
    assert without_paths({"a": [{"b": path}]}) == {"a": [{"b": released}]}


def test_one_evaluation_is_no_curve(copied):
    """A picture of one dot says nothing; that of an earlier run says something false."""
    (copied / "figures").mkdir()
    (copied / "figures" / "curves.png").touch()
    log = [{"step": 1, "loss": 1.0}, {"step": 2, "eval_mean_iou": 0.5}, {"step": 2, "eval_mean_iou": 0.5}]
    (copied / "training_log.json").write_text(json.dumps(log))
    draw(copied)
    assert not (copied / "figures" / "curves.png").exists() and "curves" not in (copied / "README.md").read_text()


@pytest.fixture
def converted(tmp_path):
    """The folder of a converted checkpoint."""
    case = golden_models.read("skd19-espnet-p2q8-11", golden_models.OWN)
    torch.save(golden_models.original_state_dict(case), tmp_path / "ESP.pth")
    convert.main([str(tmp_path / "ESP.pth"), str(tmp_path / "espnet"), "--dataset", "camvid", "--license", "mit"])
    return tmp_path / "espnet"


def test_a_converted_checkpoint_has_a_card_and_may_be_pushed(converted):
    """Published weights are worth nothing on the Hub to people who cannot tell what they are, or load them."""
    text, found = (converted / "README.md").read_text(), metadata((converted / "README.md").read_text())
    assert found["license"] == "mit" and "model-index" not in found and "metrics" not in found
    assert "11 classes of camvid" in text and "`ESP.pth`" in text and "nothing was scored" in text
    assert "Results" not in text and "bibtex" not in text and str(converted.parent) not in text
    push.check_folder(str(converted))
    assert update_model_card(converted, "alice/espnet") and '"alice/espnet"' in (converted / "README.md").read_text()
    (converted / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="converted checkpoint: model.safetensors is missing"):
        push.check_folder(str(converted))


def test_all_metadata_passes_the_hubs_own_parser(finished, copied, converted):
    """What it cannot read is silently not shown."""
    edit(copied / "metrics.json", hub={"dataset": "al/city", "student": "al/start"})
    for folder in (finished, copied, converted):
        text = model_card(folder, license="mit")
        data = ModelCard(text, ignore_metadata_errors=False).data
        assert isinstance(data, ModelCardData) and yaml.safe_load(data.to_yaml()) == metadata(text)
        for repository in (data.base_model, *(data.datasets or [])):
            if repository is not None:
                validate_repo_id(repository)

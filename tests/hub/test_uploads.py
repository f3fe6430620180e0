"""What goes wrong on the way to the Hub, with the real client in this process against a Hub on this machine."""

import time
from functools import partial
from types import SimpleNamespace

import huggingface_hub
import pytest

from helpers.hub_storage import Repository
from helpers.local_hub import LocalHub
from hf_segkd import hub as ours
from hf_segkd.training import hub_uploads


@pytest.fixture
def hub(monkeypatch):
    """A Hub with a repository of alice's; our uploads go there."""
    server = LocalHub()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    for module in (ours, hub_uploads):
        monkeypatch.setattr(module, "HfApi", partial(huggingface_hub.HfApi, endpoint=server.endpoint))
    server.repositories["models/alice/student"] = Repository(private=False)
    server.repositories["models/alice/student"].commit("main", {})
    yield server
    server.stop()


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "token, name, message",
    [("hf_wrong", "new", r"\(401\).*Log in with"), ("hf_reader", "alice/student", r"may not write to.*\(403\)")],
)
def test_refused_credentials_say_what_to_do(hub, token, name, message):
    """Finding out after the last step costs the night."""
    with pytest.raises(ours.HubError, match=message) as error:
        ours.open_repository(name, token=token)
    assert "hf_" not in str(error.value)


def test_upload_that_breaks_off_names_the_command_that_repeats_it(hub, student):
    """The first answer to a lost upload must not be a second training."""
    hub.fail("POST /api/models/alice/student/commit/main", 400)  # the client tries again after a 500
    with pytest.raises(ours.HubError, match="answered 400") as error:
        ours.push_folder(student, "alice/student", token="hf_alice")
    assert f"Nothing is lost: all files are in '{student}'" in str(error.value)
    assert str(error.value).endswith(f"hf-segkd push {student} alice/student")
    assert not hub.files("models/alice/student")
    ours.push_folder(student, "alice/student", token="hf_alice")
    assert hub.files("models/alice/student").keys() == {"config.json"}


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_named(hub, student, monkeypatch):
    """A traceback of the network client says neither who was asked nor what for."""
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    monkeypatch.setattr(ours, "HfApi", partial(huggingface_hub.HfApi, endpoint=nobody))
    with pytest.raises(ours.HubError, match=f"No answer from the Hub at {nobody} for 'alice/student'"):
        ours.push_folder(student, "alice/student", token="hf_alice")


def test_failed_upload_during_training_is_logged_and_raises_nothing(hub, student, caplog):
    """The Hub's bad minute is no reason to lose an hour; the last upload brings everything anyway."""
    hub.fail("POST /api/models/alice/student/preupload/main", 403)
    args = SimpleNamespace(hub_token="hf_alice", hub_strategy="every_save", hub_always_push=False, hub_revision=None)
    uploads = hub_uploads.CheckpointUploads("alice/student", args)
    uploads.start(str(student), str(student), step=1)
    uploads.wait_until_done()
    for _ in range(100):  # its thread says so a moment after it is done
        if caplog.text:
            break
        time.sleep(0.05)
    assert "An upload during training failed" in caplog.text and not hub.files("models/alice/student")
    uploads.start(str(student), str(student), step=2)
    uploads.wait_until_done()
    assert hub.files("models/alice/student").keys() == {"config.json"}


def test_static_space_is_made_and_filled(hub, student):
    """A Space of another kind would look for a program to start."""
    (student / "index.html").write_text("<p>page</p>")
    ours.push_static_space(student, "alice/page", token="hf_alice")
    assert hub.files("spaces/alice/page")["index.html"] == b"<p>page</p>"
    assert hub.spaces["alice/page"] == "static"

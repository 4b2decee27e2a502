"""A small model, for all files here."""

import pytest

from tests.support.tagging import Trained, train_on_audio
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.model import Tagger


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_audio(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def tagger(trained: Trained) -> Tagger:
    return load_tagger(ModelChoice(path=trained.run))

"""Small model files, made once by each process of a session."""

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Where small_files.small_file writes: a folder of this process."""
    return tmp_path_factory.mktemp("small_models")

import pytest
from corpus import Witness


@pytest.fixture(scope="session")
def witness():
    return Witness()

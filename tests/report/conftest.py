import pytest

from cvsa_jax.report import pictures


@pytest.fixture
def figures(monkeypatch) -> list:
    """The Matplotlib figures that are saved."""
    saved, save = [], pictures._save
    monkeypatch.setattr(pictures, "_save", lambda figure, *rest: saved.append(figure) or save(figure, *rest))
    return saved

"""Claims about the memory bank of CTVIS in training, against numbers computed by hand."""

import pytest
import torch

from visrt.training.losses.bank import BankSettings, history, remember

RIGHT, UP, LEFT = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])
DIAGONAL = torch.tensor([1.0, 1.0])


def test_the_first_embedding_is_the_average() -> None:
    known = remember(None, DIAGONAL, BankSettings())
    assert torch.equal(known.average, DIAGONAL)
    assert torch.equal(known.latest, DIAGONAL)


def test_the_share_of_a_new_embedding_is_its_mean_cosine_to_those_before() -> None:
    """[1, 0], [0, 2], then [3, 3]: cosine 0 to the first leaves the average, then (cos 45 + cos 45) / 2 = 0.7071."""
    after = history([RIGHT, 2 * UP, 3 * DIAGONAL], BankSettings())
    assert after[1] is not None
    assert after[2] is not None
    torch.testing.assert_close(after[1].average, RIGHT)
    torch.testing.assert_close(after[2].average, torch.tensor([0.29289 + 0.70711 * 3, 0.70711 * 3]), atol=1e-4, rtol=0)


def test_an_embedding_unlike_all_before_does_not_move_the_average() -> None:
    """Its mean cosine is -1, which counts as 0."""
    assert torch.equal(remember(remember(None, RIGHT, BankSettings()), LEFT, BankSettings()).average, RIGHT)


def test_only_the_last_embeddings_guide_where_a_limit_is_set() -> None:
    """After [-1, 0] and [1, 0], [1, 0] has mean cosine 0 to both and 1 to the last."""
    seen = [LEFT, RIGHT, RIGHT]
    unlimited, limited = history(seen, BankSettings())[-1], history(seen, BankSettings(guides=1))[-1]
    assert unlimited is not None
    assert limited is not None
    assert torch.equal(unlimited.average, LEFT)
    assert torch.equal(limited.average, RIGHT)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [(BankSettings("constant", share=0.25), [0.75, 0.25]), (BankSettings("latest"), [0.0, 1.0])],
)
def test_other_averages(settings: BankSettings, expected: list[float]) -> None:
    after = remember(remember(None, RIGHT, settings), UP, settings)
    torch.testing.assert_close(after.average, torch.tensor(expected))


@pytest.mark.parametrize("average", ["similarity_guided", "constant", "latest"])
def test_absence_changes_nothing(average: str) -> None:
    settings = BankSettings(average)  # type: ignore[arg-type]  # the three literals
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 8)
    through = [known for known in history([a, b, c], settings) if known]
    states = history([None, a, None, None, b, None, c, None], settings)
    assert states[0] is None
    for state, expected in zip(states[1:], [0, 0, 0, 1, 1, 2, 2], strict=True):
        assert state is not None
        assert torch.equal(state.average, through[expected].average)
        assert torch.equal(state.seen, through[expected].seen)


def test_gradients_reach_every_embedding_that_was_averaged() -> None:
    embeddings = torch.tensor([[1.0, 0.2], [1.0, 0.4], [1.0, 0.6]], requires_grad=True)
    known = history(list(embeddings), BankSettings())[-1]
    assert known is not None
    known.average.sum().backward()
    assert embeddings.grad is not None
    assert (embeddings.grad.abs().sum(1) > 0).all()

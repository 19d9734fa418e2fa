"""Programs compiled side by side do what the plain function does, and are not compiled again."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrs_jax.models.ahead_of_time import Programs


def programs_of(**options) -> Programs:
    """Returns the programs of a function of its own, since `jax.jit` keeps what it compiles by function."""

    def scaled(state, rows):
        return state + rows.sum(), {"rows": rows * state}

    return Programs(jax.jit(scaled, **options))


def arguments(length: int, seed: int = 0, dtype=np.float32) -> tuple:
    rows = np.random.default_rng(seed).normal(size=(3, length)).astype(dtype)
    return jnp.float32(1.5), jnp.asarray(rows)


def test_a_prepared_shape_is_not_compiled_again_and_gives_the_same():
    programs = programs_of()
    assert programs.prepare([arguments(5), arguments(8), arguments(5, seed=1)])
    assert programs.count() == 2 and programs.prepare([arguments(8)])
    for length in (5, 8):
        state, rows = arguments(length, seed=2)
        total, made = programs(state, rows)
        expected = np.asarray(rows, np.float64)
        np.testing.assert_allclose(total, 1.5 + expected.sum(), rtol=1e-5)
        np.testing.assert_allclose(made["rows"], 1.5 * expected, rtol=1e-6)
    assert programs.function._cache_size() == 0


@pytest.mark.parametrize("other", [arguments(9), arguments(8, dtype=np.float16)])
def test_what_was_not_prepared_is_compiled_when_it_is_called(other):
    programs = programs_of()
    programs.prepare([arguments(5), arguments(8)])
    total, _ = programs(*other)
    np.testing.assert_allclose(total, 1.5 + np.asarray(other[1], np.float64).sum(), rtol=1e-2)
    assert programs.count() == 3


def test_a_shape_alone_is_left_to_its_call():
    programs = programs_of()
    assert not programs.prepare([arguments(5), arguments(5, seed=1)])
    assert programs.count() == 0


def test_compilations_run_beside_one_another():
    """Every function waits, while it is traced, until all three are."""
    together = threading.Barrier(3, timeout=60)

    def waits(rows):
        together.wait()
        return rows + 1

    programs = Programs(jax.jit(waits))
    programs.prepare([(jnp.zeros(length),) for length in (2, 3, 4)])
    assert programs.count() == 3


def test_given_buffers_are_gone():
    programs = programs_of(donate_argnums=0)
    programs.prepare([arguments(5), arguments(8)])
    state, rows = arguments(5)
    programs(state, rows)
    assert state.is_deleted() and not rows.is_deleted()

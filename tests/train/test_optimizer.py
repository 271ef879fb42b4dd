"""The learning-rate schedule."""

from atk.train.config import OptimConfig
from atk.train.optimizer import lr_factor


def test_schedule_warms_up_and_decays():
    optim = OptimConfig(warmup=0.1, final=0.01)
    factors = [lr_factor(step, 100, optim) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0 == max(factors)
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.02

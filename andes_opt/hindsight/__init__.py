"""The hindsight bound: what no scheduler can exceed on a workload."""

from andes_opt.hindsight.bound import HindsightBound, bound_at_prices, window_bound

__all__ = ["HindsightBound", "bound_at_prices", "window_bound"]

"""The search of ``andes-opt tune``: an Optuna study in SQLite that resumes to the same trials."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from experiments.configuration.errors import UsageError, not_installed, not_understood

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

#: Where a finished trial keeps the means of everything measured.
METRICS = "metrics"
_EXCESS, _ERROR, _FIXED = "excess", "error", "fixed_params"
_RANGE = {"low", "high", "log", "step"}
_SPACE_FORM = "need {low, high[, log, step]} or {choices: [...]}."


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """
    What a trial came to.

    Parameters
    ----------
    value
        What is tuned, penalties included.
    excess
        Guard -> by how much it is exceeded, relative to it; none above 0 is feasible.
    metrics
        Means of everything measured, for the table of trials.
    """

    value: float
    excess: Mapping[str, float]
    metrics: Mapping[str, float]


def need_optuna() -> None:
    """
    Refuse to go on if Optuna is not installed.

    Raises
    ------
    UsageError
        If it is not.
    """
    if find_spec("optuna") is None:
        raise not_installed("optuna", "tune")


def distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """
    Return Optuna's distributions of a search space.

    Parameters
    ----------
    space
        Option -> ``{low, high[, log, step]}`` or ``{choices}``; whole numbers as ``low`` and
        ``high`` search whole numbers.

    Raises
    ------
    UsageError
        If an entry is neither, or Optuna refuses it.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not space:
        raise UsageError("tuning.space is empty: name at least one option to search.")
    found: dict[str, BaseDistribution] = {}
    for option, entry in space.items():
        keys = set(entry) if isinstance(entry, dict) else set()
        try:
            if keys == {"choices"}:
                found[option] = CategoricalDistribution(entry["choices"])
                continue
            if not {"low", "high"} <= keys <= _RANGE:
                raise UsageError(f"tuning.space.{option}={entry} not understood: {_SPACE_FORM}")
            whole = isinstance(entry["low"], int) and isinstance(entry["high"], int)
            kind = IntDistribution if whole else FloatDistribution
            found[option] = kind(**entry)
        except (ValueError, TypeError) as error:
            sentence = str(error).splitlines()[0]
            raise UsageError(f"tuning.space.{option}: {sentence}") from error
    return found


class Search:
    """
    Trials one after the other, each on disk when it is done.

    A trial depends on the seed and on the finished trials alone, so that a search that was
    killed, or is made longer, goes through the same ones as one that never stopped.

    Parameters
    ----------
    path
        The SQLite file; made if it is not there.
    name
        What identifies the search: what a trial means depends on it.
    space
        From :func:`distributions`.
    direction
        ``maximize`` or ``minimize``.
    first
        The first trial: the options as they are.
    seed
        Of the sampler.

    Raises
    ------
    UsageError
        If the file holds a search of another name or none, or the direction is neither.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        space: Mapping[str, BaseDistribution],
        direction: str,
        first: Mapping[str, Any],
        seed: int,
    ) -> None:
        import optuna

        if direction not in ("maximize", "minimize"):
            raise not_understood("tuning.direction", direction, ["maximize", "minimize"])
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = f"sqlite:///{path.resolve()}"
        try:
            names = optuna.get_all_study_names(storage)
        except Exception as error:  # of Optuna, SQLAlchemy or SQLite
            why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise UsageError(f"{path} holds no search that can be read: {why}.") from error
        if names and name not in names:
            raise UsageError(
                f"{path} holds a search of another configuration or code: "
                "name another hydra.run.dir, or remove it."
            )
        self._space, self._seed = dict(space), seed
        way = optuna.study.StudyDirection[direction.upper()]
        self._sign = 1.0 if direction == "maximize" else -1.0
        self.study: Study = optuna.create_study(
            storage=storage, study_name=name, direction=way, load_if_exists=True
        )
        interrupted = self.study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        fixed = [trial.system_attrs.get(_FIXED) for trial in interrupted]
        for trial in interrupted:
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if not self.study.trials or any(fixed):
            self.study.enqueue_trial(dict(first))

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that came to an end, complete or refused, in order."""
        return [t for t in self.study.trials if t.value is not None or _ERROR in t.user_attrs]

    def next_trial(self, evaluate: Callable[[Mapping[str, Any]], TrialOutcome]) -> None:
        """
        Make one more trial.

        Parameters
        ----------
        evaluate
            Options -> outcome. Options that it refuses (UsageError) are a trial without value.
        """
        import optuna

        self.study.sampler = optuna.samplers.TPESampler(
            seed=self._seed + len(self.finished()),
            multivariate=True,
            constant_liar=False,
        )
        trial = self.study.ask(self._space)
        try:
            outcome = evaluate(trial.params)
        except UsageError as error:
            trial.set_user_attr(_ERROR, str(error))
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        trial.set_user_attr(_EXCESS, dict(outcome.excess))
        for guard, share in outcome.excess.items():
            trial.set_constraint(guard, share)
        trial.set_user_attr(METRICS, dict(outcome.metrics))
        self.study.tell(trial, outcome.value)

    def best(self) -> FrozenTrial:
        """
        Return the best trial that keeps the guards.

        Raises
        ------
        UsageError
            If no trial keeps them.
        """
        complete = [trial for trial in self.finished() if trial.value is not None]
        kept = [t for t in complete if max(t.user_attrs[_EXCESS].values(), default=0.0) <= 0]
        if not kept:
            raise UsageError(
                f"none of {len(self.finished())} trials keeps the guards: "
                "loosen tuning.guards, widen tuning.space, or raise tuning.trials."
            )
        return max(kept, key=lambda trial: self._sign * (trial.value or 0.0))

    def importances(self) -> dict[str, float]:
        """
        Return each option's share in what separates the best trials from the others.

        PED-ANOVA (Watanabe et al., IJCAI 2023) as Optuna has it; empty for fewer than ten
        complete trials.
        """
        import optuna

        values = {trial.value for trial in self.finished() if trial.value is not None}
        if len(values) < 10 or len(self._space) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {option: float(share) for option, share in found.items()}

"""A bar of steps whose time left is to be believed: it counts from the second step on, since the first one compiles."""

from tqdm.auto import tqdm


class StepBar:
    """A progress bar of steps that appears when the first step is done."""

    def __init__(self, total: int, *, done: int = 0, description: str = "", enabled: bool = True):
        """`done` steps of `total` were done before, by an earlier start."""
        self._options = {"total": total, "desc": description, "unit": "step", "disable": not enabled}
        self._done = done
        self._bar: tqdm | None = None

    def update(self, **values: str) -> None:
        """One more step is done. `values` are shown behind the bar."""
        self._done += 1
        if self._bar is None:
            self._bar = tqdm(initial=self._done, **self._options)
        else:
            self._bar.update()
        if values:
            self._bar.set_postfix(**values)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

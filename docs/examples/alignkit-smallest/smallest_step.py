"""A step that keeps the first rows of a data set."""

from __future__ import annotations

from alignkit import Add, Artifact, DataError, DataRef, Field, Step, StepContext, StepData, hookimpl


class Head(Step):
    """Its options are keys of the stage. Later stages read its groups with `data: STAGE`."""

    class Options(Step.Options):
        data: DataRef = Field(description="the groups to choose from")
        count: int = Field(10, ge=1, description="number of groups")

    options: Options

    def check_data(self, data: StepData) -> None:  # optional: before the first stage
        rows = data.load(self.options.data)
        if rows is not None and not any(row.responses for row in rows):
            raise DataError("no row has a response", option=("data",))

    def run(self, context: StepContext) -> Artifact:
        groups = context.load(self.options.data)[: self.options.count]
        return Artifact(
            groups=groups, summary={"groups": len(groups)}, text=f"{len(groups)} groups"
        )


@hookimpl
def register(add: Add) -> None:
    add("step", "head", Head, "the first groups")

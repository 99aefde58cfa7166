"""Two tasksets of verifiers v1: sums in the head, and sums with a tool that counts its calls."""

import verifiers.v1 as vf

__all__ = ["Sums"]  # a package exports exactly one


class SumData(vf.TaskData):
    answer: int


class SumTask(vf.Task[SumData]):
    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        digits = "".join(letter if letter.isdigit() else " " for letter in trace.last_reply).split()
        return float(bool(digits) and int(digits[-1]) == self.data.answer)

    @vf.reward(weight=-0.1)
    async def long(self, trace: vf.Trace) -> float:
        return float(trace.is_truncated)


class SumsConfig(vf.TasksetConfig):
    first: int = 1
    last: int = 9


class Sums(vf.Taskset[SumTask, SumsConfig]):
    def load(self) -> list[SumTask]:
        numbers = range(self.config.first, self.config.last + 1)
        return [
            SumTask(
                SumData(prompt=f"What is {a} + {b}? Answer with the number only.", answer=a + b),
                self.config.task,
            )
            for a in numbers
            for b in numbers
        ]


class Count(vf.State):
    calls: int = 0


class Adder(vf.Toolset[vf.ToolsetConfig, Count]):
    TOOL_PREFIX = None

    @vf.tool
    async def add(self, a: int, b: int) -> str:
        """Add two numbers."""
        self.state.calls += 1
        return str(a + b)


class ToolTask(vf.Task[SumData, Count, vf.TaskConfig]):
    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [Adder(vf.ToolsetConfig())]

    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        return float(str(self.data.answer) in trace.last_reply)

    @vf.reward(weight=0.5)
    async def asked_once(self, trace: vf.Trace) -> float:
        return float(trace.state.calls == 1)

    @vf.stop
    async def asked_too_often(self, trace: vf.Trace) -> bool:
        return trace.state.calls >= 3


class ToolSums(vf.Taskset[ToolTask, SumsConfig]):
    def load(self) -> list[ToolTask]:
        return [ToolTask(task.data, self.config.task) for task in Sums(self.config).load()]

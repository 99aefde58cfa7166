"""An environment as TRL's `GRPOTrainer(environment_factory=Shop)` takes it; nothing in it knows of
alignkit.
"""


class Shop:
    def reset(self, item: str, count: int, **columns: object) -> None:
        self.wanted = (item, count)
        self.orders: list[tuple[str, int]] = []

    def order(self, item: str, count: int) -> str:
        """Order something.

        Args:
            item: what to order, such as `apples`.
            count: how many.
        """
        if count < 1:
            raise ValueError("the count must be at least 1")
        self.orders.append((item, count))
        return f"ordered: {count} {item}"

    def get_reward(self) -> float:
        """Half for the item and half for the count, of a single order."""
        if len(self.orders) != 1:
            return 0.0
        (item, count), (wanted, number) = self.orders[0], self.wanted
        return 0.5 * (item == wanted) + 0.5 * (count == number)

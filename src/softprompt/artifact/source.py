"""What is being read or written, so that every message names it and ends in a remedy."""

from dataclasses import dataclass

from softprompt.errors import ArtifactError


@dataclass(frozen=True)
class Source:
    """An artifact on its way from or to disk.

    Args:
        name: what to call it.
        remedy: what to do when it is not whole.
    """

    name: str
    remedy: str

    def fault(self, fact: str) -> ArtifactError:
        """The error to raise for a fact, which should say the limit too."""
        return ArtifactError(f"{self.name}: {fact} {self.remedy}")

    def faults(self, facts: list[str]) -> ArtifactError:
        """The error to raise for several facts at once."""
        if len(facts) == 1:
            return self.fault(facts[0])
        listed = "".join(f"\n  - {fact}" for fact in facts)
        return ArtifactError(f"{self.name}: {len(facts)} faults:{listed}\n{self.remedy}")

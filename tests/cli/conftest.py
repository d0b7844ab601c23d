# Lightning's log handler keeps the stderr of the moment it is imported: not that of a single test.
import lightning.pytorch  # noqa: F401

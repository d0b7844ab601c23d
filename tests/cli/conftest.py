# Import Lightning outside of a test: its log handler keeps the stderr it finds at import.
import lightning.pytorch  # noqa: F401

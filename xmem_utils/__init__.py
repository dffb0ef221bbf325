"""The thin package under the notebooks."""

import warnings

# peft asks transformers by the old name; nothing a user of this package could do about it
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

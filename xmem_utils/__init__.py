"""The thin package under the notebooks."""

import sys
import warnings

# jsonschema, which dicebear and nbformat import, would parse a grammar of addresses for two seconds in every process;
# without it, it does not check the format of addresses, which nothing here asks for
sys.modules.setdefault("rfc3987_syntax", None)
# peft asks transformers by the old name; nothing a user of this package could do about it
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

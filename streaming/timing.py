"""Two factors that tests set; the only environment variables that the parts read themselves."""

import os

# The length of a second in X's rules and in progress messages
SECOND = float(os.environ.get("STREAM_TEST_SECOND") or 1)
# Multiplies every limit on how long to wait for Kafka, X or an orderly shutdown
PATIENCE = float(os.environ.get("STREAM_TEST_PATIENCE") or 1)

"""The bundled models: a captioned data set drawn by rule, and the scripts that train both pipelines on it."""

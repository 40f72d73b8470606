"""The evaluations behind ``linvit eval``, one file per task: a record for programs, tables for people, files."""

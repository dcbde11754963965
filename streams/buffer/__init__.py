"""The rolling top-k of prompts: `base` (protocol and rules), `memory` (reference), `redis` (the real one)."""

"""What flows, and where it waits. Knows no agent and no trainer."""

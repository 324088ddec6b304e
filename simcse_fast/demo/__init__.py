"""The main job on real text, in four minutes: count, train, time, and show what was learned."""

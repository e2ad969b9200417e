"""What one training process is asked to do: tokens -> composed config -> job, and what identifies its result."""

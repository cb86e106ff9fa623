"""Where cases are computed: a resident child process per device."""

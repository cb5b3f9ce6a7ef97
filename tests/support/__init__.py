"""What tests share: suites, towers, runs, packs and hostile files to try things on."""

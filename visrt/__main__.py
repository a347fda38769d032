"""`python -m visrt`, which launchers of several processes start: `torchrun --nproc-per-node 8 -m visrt train ...`."""

from visrt.cli import main

if __name__ == "__main__":
    main()

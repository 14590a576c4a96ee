from benchmarks.cpu import main

main()

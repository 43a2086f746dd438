"""Tests of the scripts themselves: python3 -m unittest discover -t scripts -s scripts/tests"""

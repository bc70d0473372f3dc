"""This book's study of the filters: which runs are compared, what is stored of them, and the tables made of it.

The method itself is the library above; nothing there needs this package.
"""

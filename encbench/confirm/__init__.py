"""Confirmation: does the ranking hold when models are really trained?"""
